"""One file that holds a whole platform: every row in one state of the database, the uploads that these rows
need, and the key. It is made of either database and restored into either (docs/reference/backup.md).
"""
