"""What a model costs and what it sees: FLOPs, memory, time, feature maps and attention, pictures, export."""
