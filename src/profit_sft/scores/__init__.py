"""What a frozen model gives every label token: computed once, stored, read."""
