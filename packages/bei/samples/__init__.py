"""Real sentences that come with the package: the test part of STS-B (CC BY-SA 4.0)."""
