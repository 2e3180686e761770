"""People: drawn ones, and photographs as crops of STORED pixels a side, of which the central CENTRAL are the person."""

STORED, CENTRAL = 192, 128  # a 128x128 square may turn by any angle within 192x192
