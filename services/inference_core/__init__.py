"""What a prediction is: models, tensors, images and the repository. Imports no web framework."""
