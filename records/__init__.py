"""Records, such as dialogues, to training examples."""
