"""How much better the edited model behaves, and what it costs."""
