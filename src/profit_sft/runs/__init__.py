"""What a run has logged: reading its folder, its figures, and the page that shows them."""
