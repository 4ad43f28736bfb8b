//! A frame and a forwarding table give a verdict: MAC learning, flood trees, frame parsing, segmentation, fragmentation.
#![forbid(unsafe_code)]
