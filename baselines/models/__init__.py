"""Networks of the baselines; ResNet-50 comes from torchvision."""
