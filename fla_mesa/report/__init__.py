"""What a report is made of, and how it is written. Knows no model and no command.

tables      columns of records, and values with their spread: tables that know how a value is written and which is best
pictures    panels of lines, and PNG files of them
sections    tables, pictures and text in order, and as Markdown
page        the same as one HTML page
files       what is written of a report, and how it is read again; command: `fla-mesa page`
"""
