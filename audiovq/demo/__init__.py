"""The codec as a page in the browser, on this machine. It needs the extra `demo`."""
