//! Types shared by kernel and user space, nothing else.
#![no_std]
