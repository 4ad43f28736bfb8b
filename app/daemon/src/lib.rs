//! Composition: configuration, store, sockets for the node, HTTP, shutdown order.
#![forbid(unsafe_code)]
