from mmsimvit.cli.convert_checkpoint import main

if __name__ == '__main__':
    main()
