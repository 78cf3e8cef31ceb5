"""What codes mean to eye and ear: pages about a codebook, and ways between two recordings."""
