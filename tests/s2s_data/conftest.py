import torch

# Small tensors on shared cores: torch's threads would spend the time waiting for each other.
torch.set_num_threads(1)
