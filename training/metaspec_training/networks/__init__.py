"""The networks, from layers to what is exported."""
