"""Work that a team of threads does together."""

# One part of the work: (context, which part, of how many, the worker's place in the team).
ctypedef void (*team_work)(void *context, int part, int parts, int worker) noexcept nogil
# Has at most `threads` workers do all parts, and returns when they have; `large` is work over more
# than caches hold.
ctypedef void (*team_run)(team_work work, void *context, int threads, bint large) noexcept nogil
