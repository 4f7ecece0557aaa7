"""The operators' actions as tools of the Model Context Protocol: `http` serves them at `/mcp`, `stdio` to
the program that started it. Specification: https://modelcontextprotocol.io/specification
"""
