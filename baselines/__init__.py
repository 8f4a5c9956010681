"""The ground: what is compressed, on what data, and how it is trained."""
