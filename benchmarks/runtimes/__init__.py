"""Other runtimes beside this package, on the same weights and the same questions.

`rows` is the table of what is measured, `sides` that of who is asked; `ours`, `cold` and `with_*` answer.
`files` makes what they read, `worker` is the process a side lives in, `turns` lets them take turns, `run`
goes through the rows, `limits` says what the machine could do.
"""
