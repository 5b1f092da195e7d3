"""What every service stands on, and nothing that knows a service.

errors       what a handler may raise
store        Record, Guard, the Store Protocol and its in-memory twin
etcd_store   the same over etcd: reads, watches, leases; etcd_commit has group commit, etcd_client connections and failover
etcd_server  how the supervised etcd is started and when it is ready; etcd_maintenance its compaction, space and alarms
pki          the cloud's certificate authority: etcd's certificates, replicas', agents'
cache        every record decoded in memory, fed by one watch
database     transact(): read from the cache, decide, commit once, retry when the world moved
overlay      a whole call's decisions as one commit; idempotency answers a call again by its key, and takes effect once
election     leadership by lease, and the fence that leaders commit with
reconcile    from changes to calls of reconcile(key), with back-off and resync
rpc          from a servicer to something that can be called: caller, policy, deadline, errors, one log line
caller       who calls, as their token says
interfaces   what is said about a server's network interfaces between compute and network
listing      filters, sorting and pages that every list call shares
listeners    who listens on a port, for messages
quota        ledgers charged in the commit that uses them

Keys of its own: /election/<job> the leader's identity under its lease, /quota/ledgers/<service>/<project>,
/kernel/maintenance and /kernel/idempotency-swept touched by sweeps, /kernel/idempotency/<hash> while a call of many commits runs;
outside of "/", so that no watch carries them: marks/<store>/<slot>, the number of the last transaction that a store sent, by
which it learns whether it was applied, and idempotency/<hash>, the answers of calls that came with a key.
"""
