"""What `metaspec.mcp` is made of: the working folder, the answers, and the tools."""
