"""What every process of a cloud tells of itself: metrics, health, logs and traces. Knows nothing of what the process does.

Recording is cheap and needs no library: `timing` counts. What reads the counts (`exposition`, prometheus-client) is imported
when somebody asks, and OpenTelemetry (`traces`) only where a collector is configured.
"""
