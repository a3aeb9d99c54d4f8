"""Work that a team of threads does together."""

# Called by each worker of a team: (context, which one, of how many).
ctypedef void (*team_work)(void *context, int worker, int team) noexcept nogil
# Has `threads` workers do it, and returns when all have.
ctypedef void (*team_run)(team_work work, void *context, int threads) noexcept nogil
