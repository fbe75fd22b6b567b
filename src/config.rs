//! The configuration: every subsystem owns its section; this file joins and checks them.
