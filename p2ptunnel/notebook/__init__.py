"""What a notebook shows: widgets over a peer; the only home of ipywidgets."""
