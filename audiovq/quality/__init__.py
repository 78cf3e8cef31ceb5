"""How good decoded speech is: measures, peers, tables and pages."""
