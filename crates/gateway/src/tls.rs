//! The name that a ClientHello asks for.
