"""Image steps of preprocessing by name: registration, bias field, table removal."""
