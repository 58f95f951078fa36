"""The Linux kernel's netfilter messages: for Linux what `hns` is for Windows.

What comes in: values (expressions, sets, elements) from a dataplane; datagrams from the kernel.
What goes out: bytes for one socket; values read from the kernel's dumps; refusals with errno and the kernel's words.
Who calls it: `dataplanes/nftables`; `socket.py` alone touches the kernel, the other modules are pure.
What it must never do: list another program's tables, start a program, or guess which message a refusal belongs to.
Evidence: linux/netlink.h, linux/netfilter/nf_tables.h; `nft --debug=netlink` 1.0.6; measured on Linux 6.18.
"""
