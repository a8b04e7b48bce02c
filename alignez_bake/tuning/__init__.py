"""The choice of an edit without labels: the base judges what each edited model answers."""
