"""What has nothing to do with networks: files, processes, clocks, confidence intervals, the user's own modules.

Imports: ``errors`` only.

Start anywhere; each file stands alone.
"""
