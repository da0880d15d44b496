"""The command line: parse, call, print. It joins the parts for each command; no rule lives here."""
