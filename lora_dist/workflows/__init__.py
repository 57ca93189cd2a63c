"""Commands that launch processes of the package: demo, doctor, verify, reproduce."""
