"""HTTP: routes, what travels over them, and what lies around every request."""
