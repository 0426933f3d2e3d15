/* ffi_source.h -- what the generated binding is compiled against: the headers that ffi.cdef quotes, nothing else. */
#include "kv/io.h"
#include "kv/server.h"
#include "kv/store.h"
