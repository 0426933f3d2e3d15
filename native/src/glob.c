/* glob.c -- patterns over names, as Redis has them: * ? [abc] [^a] [a-z] and a backslash before what is meant itself.
 *
 * Only the last * is ever gone back to: if the rest fits behind a later place, it fits whatever the earlier ones took. So it
 * is at worst pattern times name, and no pattern makes it slower than that. No state; safe from any thread. */
#include "command.h"

/* One byte against a set that begins at *at; past it. A set that does not end ends with the pattern. */
static bool in_set(text p, size_t *at, uint8_t byte) {
    size_t i = *at + 1;
    bool negated = i < p.size && p.at[i] == '^', found = false;
    if (negated) i++;
    for (; i < p.size && p.at[i] != ']'; i++) {
        if (p.at[i] == '\\' && i + 1 < p.size) {
            found |= p.at[++i] == byte;
        } else if (i + 2 < p.size && p.at[i + 1] == '-') {
            uint8_t low = p.at[i], high = p.at[i + 2];
            if (low > high) low = p.at[i + 2], high = p.at[i];
            found |= byte >= low && byte <= high;
            i += 2;
        } else {
            found |= p.at[i] == byte;
        }
    }
    *at = i < p.size ? i + 1 : i;
    return found != negated;
}

/* One byte of the name against what is at *at, which is no star; past it. */
static bool one_fits(text p, size_t *at, uint8_t byte) {
    if (p.at[*at] == '[') return in_set(p, at, byte);
    if (p.at[*at] == '?') {
        ++*at;
        return true;
    }
    if (p.at[*at] == '\\' && *at + 1 < p.size) ++*at;
    return p.at[(*at)++] == byte;
}

bool glob_match(text p, text name) {
    size_t at = 0, i = 0, star = SIZE_MAX, from = 0;
    while (i < name.size) {
        size_t next = at;
        if (at < p.size && p.at[at] == '*') {
            star = ++at;
            from = i;
        } else if (at < p.size && one_fits(p, &next, name.at[i])) {
            at = next;
            i++;
        } else if (star != SIZE_MAX) {
            at = star;
            i = ++from;
        } else {
            return false;
        }
    }
    while (at < p.size && p.at[at] == '*') at++;
    return at == p.size;
}

size_t glob_literal(text p) {
    size_t size = 0;
    while (size < p.size && memchr("*?[\\", p.at[size], 4) == NULL) size++;
    return size;
}
