"""Commands that start others: demo, doctor, verify, reproduce."""
