"""What a report is made of, and how it is written. Knows no model and no command.

tables      columns of records, and values with their spread: tables that know how a value is written and which is best
pictures    panels of lines, and PNG files of them
page        tables, pictures and text as one HTML page
"""
