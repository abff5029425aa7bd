"""What is done about damage: checking, setting aside, bringing back."""
