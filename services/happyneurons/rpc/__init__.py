"""What every gRPC server and client of the project shares: errors, metrics, channels, messages."""
