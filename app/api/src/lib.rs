//! HTTP request and response types, status report schema, small client.
#![forbid(unsafe_code)]
