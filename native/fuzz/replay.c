/* replay.c -- main() for a fuzz target where there is no libFuzzer: every file of the directories named is an input.
 * So the kept corpus is replayed by every compiler and in every build. */
#include <dirent.h>

#include "fuzz.h"

static void replay(const char *path) {
    FILE *file = fopen(path, "rb");
    KV_ASSERT(file != NULL && fseek(file, 0, SEEK_END) == 0);
    long size = ftell(file);
    KV_ASSERT(size >= 0);
    uint8_t *bytes = malloc((size_t)size + 1);
    rewind(file);
    KV_ASSERT(bytes != NULL && fread(bytes, 1, (size_t)size, file) == (size_t)size);
    fclose(file);
    fprintf(stderr, "%s\n", path); /* The last one named is the one that failed. */
    LLVMFuzzerTestOneInput(bytes, (size_t)size);
    free(bytes);
}

int main(int count, char **directories) {
    int replayed = 0;
    for (int i = 1; i < count; i++) {
        DIR *directory = opendir(directories[i]);
        KV_ASSERT(directory != NULL);
        for (const struct dirent *one; (one = readdir(directory)) != NULL;) {
            char path[4096];
            if (one->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%s", directories[i], one->d_name);
            replay(path);
            replayed++;
        }
        closedir(directory);
    }
    printf("%d passed, 0 failed\n", replayed);
    return replayed == 0;
}
