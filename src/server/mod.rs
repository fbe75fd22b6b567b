//! HTTP: listen and drain, routes, wire format, console page.
