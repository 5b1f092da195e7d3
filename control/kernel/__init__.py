"""What every service stands on, and nothing that knows a service.

errors       what a handler may raise
store        Record, Guard, the Store Protocol and its in-memory twin; etcd_store is the same over etcd
cache        every record decoded in memory, fed by one watch
database     transact(): read from the cache, decide, commit once, retry when the world moved
election     leadership by lease, and the fence that leaders commit with
reconcile    from changes to calls of reconcile(key), with back-off and resync
rpc          from a servicer to something that can be called: caller, policy, deadline, errors, one log line
listing      filters, sorting and pages that every list call shares
quota        ledgers charged in the commit that uses them
"""
