"""The router league: what plays, how it is run and measured, and its report."""
