"""`fla-mesa inspect`: what a MesaNet's layers hold and solve."""
