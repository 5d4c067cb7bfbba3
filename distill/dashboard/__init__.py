"""Runs -> a web page, served on this machine or written into one file. Reads run folders, and needs no torch.

journal   metrics.jsonl, read on from where the last reading ended
runs      folders below the given ones, what each says of itself, which can be compared
where     where.safetensors: errors by position, channel and clip, pictures of tokens
compare   run B minus run A
api       path -> JSON, out of these; server and export both ask it
page/     the page itself: page.html, page.css, page.js and its modules, ECharts
"""
