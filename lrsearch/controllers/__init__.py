"""Pure state machines: they are asked once a window and never touch a tensor."""
