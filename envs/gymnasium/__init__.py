"""Any world that is registered with Gymnasium."""
