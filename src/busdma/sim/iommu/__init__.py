"""Translation hardware: tables that it walks in memory, and caches of translations that really go stale."""
